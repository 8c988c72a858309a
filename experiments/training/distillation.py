"""Distillation: a model learns the predictions of a teacher, the run or Hugging Face folder of `config.teacher`.

What the teacher was read from is kept in the checkpoints of a run, and a run that continues needs that very teacher.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from configs import stored as stored_configs
from experiments.checkpoints.checkpointing import load_part
from experiments.checkpoints.step_directories import load_contents
from experiments.data import loading, tokenizer_files, tokenizers
from experiments.files import huggingface_folder, json_files, paths
from experiments.training import meshes, resuming
from experiments.training.experiment import Experiment, check_sees_documents, make_experiment
from gaussq_jax import models


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A model whose predictions are learned, with nothing allocated until its weights are asked for.

    Attributes:
      name: `config.teacher`.
      model: the module; what says where activations lie is given to it where it is applied.
      abstract_weights: shapes, dtypes and shardings of its weights.
      source: what they are read from: the SHA-256, and of a run the step.
      settings: `config.distillation`.
      tokenizer: of its folder.
      load: reads the weights, onto the devices; ValueError where they are not what they were.
    """

    name: str
    model: Any
    abstract_weights: Any
    source: dict[str, Any]
    settings: ConfigDict
    tokenizer: tokenizers.Tokenizer
    load: Callable[[], Any]

    @functools.cached_property
    def weights(self) -> Any:
        """As its evaluation makes them, without noise."""
        logging.info('reading the weights of the teacher %s, %s', self.name, self.source)
        with json_files.naming(f'config.teacher={self.name!r}'):
            return self.load()

    @property
    def family(self) -> models.ModelFamily:
        return models.family_of(self.model)

    def on(self, mesh: Mesh) -> 'Teacher':
        """The same, whose weights are to lie on another mesh."""
        return dataclasses.replace(self, abstract_weights=_on_mesh(self.abstract_weights, mesh, self.family))

    def describe(self) -> str:
        """What teaches, and how, for people."""
        number = sum(leaf.size for leaf in jax.tree.leaves(self.abstract_weights))
        step = f', step {self.source["step"]}' if 'step' in self.source else ''
        weight, temperature = self.settings.weight, self.settings.temperature
        how = f'{weight:g} of the loss is its KL, at temperature {temperature:g}'
        return f'{self.name}{step}: {self.family.name}, {number:,} parameters; {how}'


def kl_divergence(teacher_logits: jax.Array, student_logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(teacher || student) of the predictions at each token, in nats.

        sum_v p_v (log p_v - log q_v),    p = softmax(teacher / temperature),  q = softmax(student / temperature)

    Args:
      teacher_logits, student_logits: (..., vocab_size), of any floating dtype.
      temperature: positive.

    Returns:
      (...), float32: 0 where both are the same.

    Example:
      >>> round(float(kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75])))), 4)
      0.1438

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2.
    """
    log_p, log_q = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / temperature) for logits in (teacher_logits, student_logits)
    )
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def make_objective(config: ConfigDict) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
    """What is minimised: a function of the means 'loss' and 'kl', the latter at `config.distillation.temperature`."""
    weight, temperature = config.distillation.weight, config.distillation.temperature
    return lambda means: (1 - weight) * means['loss'] + weight * temperature**2 * means['kl']


def find(
    experiment: Experiment, tokenizer: tokenizers.Tokenizer | None = None, workdir: pathlib.Path | None = None
) -> Teacher | None:
    """The teacher that the config of an experiment names; None if it names none.

    Args:
      experiment: of the student.
      tokenizer: of the student, which has to be the teacher's; None: nothing is known of it.
      workdir: of the student's run, which may have begun, or branch off a run that has: then the teacher has to be the
        one that this began with.

    Raises:
      ValueError: settings that can't be; there is no such teacher, or it has another vocabulary or tokenizer.
    """
    config = experiment.config
    _check_settings(config)
    if not config.teacher:
        return None
    began_with = (resuming.begun_config(config, workdir) or {}).get('teacher_weights')
    folder, name = paths.parse(config.teacher, 'config.teacher'), f'config.teacher={config.teacher!r}'
    with json_files.naming(name):
        if (folder / 'checkpoints').is_dir():
            teacher = _of_run(experiment, folder, (began_with or {}).get('step'))
        elif (folder / huggingface_folder.CONFIG).is_file():
            teacher = _of_huggingface(experiment, folder)
        else:
            raise ValueError(
                f'{folder} is neither the workdir of a run, with checkpoints, nor a Hugging Face folder, with'
                f' {huggingface_folder.CONFIG}'
            )
        if began_with and teacher.source != began_with:
            raise ValueError(f'this run began with another teacher, {began_with}; this one is {teacher.source}')
        if teacher.model.vocab_size != experiment.vocab_size:
            raise ValueError(
                f'its model has a vocabulary of {teacher.model.vocab_size:,}, that of the student'
                f' {experiment.vocab_size:,}; they must be the same'
            )
        _check_tokenizer(teacher.tokenizer, tokenizer)
        check_sees_documents(config, teacher.family)
    return teacher


def _check_settings(config: ConfigDict):
    settings, default = config.distillation, common.base_config(common.parse('', **common.ARGUMENTS)).distillation
    if not config.teacher and settings.to_dict() != default.to_dict():
        raise ValueError(f'config.distillation={settings.to_dict()} has a meaning only with config.teacher')
    if not 0 < settings.temperature < math.inf:
        raise ValueError(f'config.distillation.temperature={settings.temperature} must be a positive number')
    if not 0 <= settings.weight <= 1:
        raise ValueError(f'config.distillation.weight={settings.weight} must be of 0 to 1')


def _check_tokenizer(teachers: tokenizers.Tokenizer, students: tokenizers.Tokenizer | None):
    """ValueError if the same text has other tokens for the teacher."""
    if students is None:
        return
    if teachers.fingerprint != students.fingerprint:
        raise ValueError(
            f'its tokenizer is {teachers.fingerprint}, that of the student {students.fingerprint}; they must be the'
            ' same'
        )
    if teachers.special != students.special:
        raise ValueError(
            f'its special tokens are {teachers.special.settings}, those of the student {students.special.settings};'
            ' set config.special_tokens to the same'
        )


def _of_run(experiment: Experiment, workdir: pathlib.Path, step: int | None) -> Teacher:
    """The run of the newest whole checkpoint, or of that step; its batches are the student's."""
    directory, students = workdir / 'checkpoints', experiment.config
    contents = load_contents(directory, at_most=step)
    batches = ('mesh', 'batch_size', 'microbatches', 'sequence_length', 'packing', 'text_feature', 'scan_unroll')
    changes = {name: students.to_dict()[name] for name in batches}
    stored = stored_configs.read(contents['config'], directory)
    config = stored_configs.to_look_at(stored, directory, changes | {'remat_policy': '', 'resample_weights': False})
    config.tokenizer = tokenizer_files.copy_of(config.tokenizer, workdir) or config.tokenizer
    tokenizer = loading.load_tokenizer(config)
    teacher = make_experiment(config, tokenizer.vocab_size).at_step(contents['step'])
    source = {name: contents[name] for name in ('step', 'sha256')}
    make = lambda params, state: teacher.transform.apply(None, params, state)
    state = teacher.abstract_state
    abstract_weights = jax.eval_shape(make, state.params, state.transform_state)
    abstract_weights = _on_mesh(abstract_weights, experiment.mesh, teacher.family)

    def load():
        parts = (
            load_part(directory, name=name, abstract_part=part, **source) if part else {}
            for name, part in (('params', state.params), ('transform_state', state.transform_state))
        )
        return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract_weights))(*parts)

    model = teacher.model
    return Teacher(students.teacher, model, abstract_weights, source, students.distillation, tokenizer, load)


def _of_huggingface(experiment: Experiment, folder: pathlib.Path) -> Teacher:
    """As an imported checkpoint is evaluated: weights and computation in bfloat16."""
    config = experiment.config
    tensors, theirs = huggingface_folder.read(folder)
    model = models.model_from_huggingface(theirs).clone(scan_unroll=config.scan_unroll)
    huggingface_folder.check_length(theirs, config.sequence_length, 'config.sequence_length')
    advice = 'import it by experiments.import_hf with --tokenizer=FILE, and name that run'
    file = huggingface_folder.find_tokenizer(folder, advice)
    tokenizer = tokenizers.load_tokenizer(file, folder=folder, vocab_size=model.vocab_size, is_given=True)
    tokens = jax.ShapeDtypeStruct((1, config.sequence_length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    abstract_weights = _on_mesh(shapes, experiment.mesh, models.family_of(model))

    def load():
        _, params = models.from_huggingface(tensors, theirs)

        def to_devices(leaf, abstract):
            rounded = leaf.astype(ml_dtypes.bfloat16)
            return jax.make_array_from_callback(leaf.shape, abstract.sharding, lambda index: rounded[index])

        return jax.tree.map(to_devices, params, abstract_weights)

    source = {'sha256': huggingface_folder.sha256(folder)}
    return Teacher(config.teacher, model, abstract_weights, source, config.distillation, tokenizer, load)


def _on_mesh(weights: Any, mesh: Mesh, family: models.ModelFamily) -> Any:
    """Shapes, sharded as a student's of this family."""
    shardings = meshes.state_shardings(mesh, {'params': weights}, family)['params']
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), weights, shardings
    )
