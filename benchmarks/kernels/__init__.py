"""The two Triton ops: timed on a GPU; the size of their code and modelled times without one."""
