"""Array kernels: plain `jax` in, plain `jax` out; formats and keys arrive as integers."""
