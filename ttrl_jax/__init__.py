import sys

from ttrl_jax import ctrl_c

# What Python calls itself while it looks for a module to run: python -m ttrl_jax.train. Who imports the package as a
# library has another name here, and nothing is changed.
if sys.argv[:1] == ["-m"]:
    ctrl_c.ends_at_once()
