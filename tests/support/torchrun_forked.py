"""torchrun with --start-method forkserver --run-path: a worker is forked from a process that has made its imports.

They are most of what a worker does here, and a restart makes them again.
"""

import multiprocessing

from torch.distributed.run import main

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(
        ["torch.distributed.run", "batch_torchrun", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"]
    )
    main()
