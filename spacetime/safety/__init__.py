"""Safety: policies as data, checks of texts and frames, verdicts.

Knows prompts and frames; nothing of models, of jobs or of HTTP. A check that
cannot run raises CheckError, which the caller must not treat as a pass.
"""
