import pytest

from stepcache.commands.quiet import quiet


def test_quiet_puts_everything_back_even_after_an_error():
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)

    def state():
        return [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]

    before = state()
    try:
        diffusers_logging.set_verbosity_info()
        diffusers_logging.enable_progress_bar()
        transformers_logging.set_verbosity_debug()
        transformers_logging.disable_progress_bar()
        changed = state()
        assert changed == [(diffusers_logging.INFO, True), (transformers_logging.DEBUG, False)]
        with pytest.raises(ZeroDivisionError), quiet("diffusers", "transformers"):
            assert state() == [(diffusers_logging.ERROR, False), (transformers_logging.ERROR, False)]
            raise ZeroDivisionError
        assert state() == changed
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar() if bars else library.disable_progress_bar()


def test_a_library_that_is_not_there_leaves_the_others_as_they_were():
    from diffusers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        with pytest.raises(ModuleNotFoundError), quiet("diffusers", "no_such_library"):
            pass
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        logging.enable_progress_bar() if before[1] else logging.disable_progress_bar()
