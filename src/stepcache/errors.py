"""stepcache's errors. Every message gives the values and says what to do."""


class StepCacheError(Exception):
    """Base of all errors that stepcache raises. The pipe is as it was before the call."""


class InvalidSetting(StepCacheError, ValueError):
    """An argument that no pipeline could take (an interval of 0, a branch that is not an integer)."""


class BranchOutOfRange(InvalidSetting):
    """A branch that this U-Net does not have."""


class UnsupportedPipeline(StepCacheError, TypeError):
    """The object is not a pipeline, or has no U-Net, or the pipeline cannot use a setting."""


class UnsupportedUNet(StepCacheError, TypeError):
    """A U-Net, or a block in it, whose forward stepcache does not know."""


class UnsupportedVAE(StepCacheError, TypeError):
    """vae=True, and the pipe has no VAE, or one whose decoder stepcache does not know."""


class AlreadyCached(StepCacheError, RuntimeError):
    """Another cache or a compiler has already replaced the forward of the U-Net or the VAE's decoder, or the loop."""


class GraphCompileError(StepCacheError, RuntimeError):
    """torch.compile failed on a graph; the message includes its full error."""


class NothingCompiled(StepCacheError, RuntimeError):
    """There are no compiled artifacts to save."""


class NotAccelerated(StepCacheError, RuntimeError):
    """The call needs an accelerated pipe, and this one is not."""


class NotCompiled(StepCacheError, RuntimeError):
    """compiled_only=True, and a graph cannot run from a package."""
