"""The table of what stepcache does with each pipeline and feature: test_cases.py runs it, and the README's support
matrix is made from it.
"""

import cases_adapters
import cases_control
import cases_diffusion
import cases_editing
import cases_families
import cases_own_loops
import cases_refused

CASES = [
    *cases_diffusion.CASES,
    *cases_control.CASES,
    *cases_adapters.CASES,
    *cases_editing.CASES,
    *cases_families.CASES,
    *cases_own_loops.CASES,
    *cases_refused.CASES,
]
