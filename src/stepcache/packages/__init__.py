"""Graphs compiled ahead of time: AOTInductor packages in a folder, with a manifest that says what each is for.

A package is native code for one program (a full or partial step, or a VAE's decoder) at one set of static shapes. It
holds no weights: a model's own are among its inputs, so it sees whatever they are at each call, and any number of
models of one architecture run from one package. (AOTInductor can also bind weights once, "user-managed", but it never
lets go of them: a dropped model would keep its memory.)

state.py says what of a model a graph depends on, spec.py what of its inputs, switches.py what of torch's settings, and
maker.py what of the machine and the installed versions. manifest.py stores all that with a hash of each file, folder.py
reads and writes the folder. job.py makes one package, in a process of its own, and build.py several side by side;
loaded.py runs them. store.py is what graphs ask.
"""
