"""What can go wrong, one class a kind. Every message carries the values at hand and says what to do."""


class StepCacheError(Exception):
    """Base of all errors that stepcache raises; the pipe is left as it was before the call."""


class InvalidSetting(StepCacheError, ValueError):
    """An argument that no pipeline could take (an interval of 0, a branch that is no integer)."""


class BranchOutOfRange(InvalidSetting):
    """A branch that this U-Net does not have."""


class UnsupportedPipeline(StepCacheError, TypeError):
    """The object is no pipeline, or one without a U-Net."""


class UnsupportedUNet(StepCacheError, TypeError):
    """A U-Net, or a block in it, whose forward stepcache does not know."""


class UnsupportedVAE(StepCacheError, TypeError):
    """A VAE whose decoder stepcache does not know, or none at all, where vae=True asks for it."""


class AlreadyCached(StepCacheError, RuntimeError):
    """The U-Net's forward is already replaced, by another cache or by a compiler."""


class GraphCompileError(StepCacheError, RuntimeError):
    """torch.compile failed on a graph; its own error follows, whole."""


class NothingCompiled(StepCacheError, RuntimeError):
    """There are no compiled artifacts to save."""


class NotAccelerated(StepCacheError, RuntimeError):
    """A call that needs an accelerated pipe was given another one."""
