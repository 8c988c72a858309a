"""The parameter trees of models that are public, small: each leaf's path, shape, names of axes, and what it is.

Written by hand from the models' own code.
"""

from parameter_families import hugging_face, language, nnx, vision

FAMILIES = {**language.FAMILIES, **vision.FAMILIES, **hugging_face.FAMILIES, **nnx.FAMILIES}
