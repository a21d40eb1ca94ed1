"""Flags of XLA for tests, which compile much and run little.

Measured on the training step of a tiny model on one device (BUILD_NOTES.md):
without LLVM's optimisation it compiles in 16.7 seconds of CPU, with the older
emitters of fusions in 6.4, and with XLA's own preset for this purpose in 4.6.
Results differ from those of the default flags in the last bits alone.
"""

import importlib.metadata

_FLAGS = ['--xla_backend_optimization_level=0']
# XLA ends a process that sets a flag it does not know, and drops flags.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS += [
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE',
  ]
COMPILE_QUICKLY = ' '.join(_FLAGS)
