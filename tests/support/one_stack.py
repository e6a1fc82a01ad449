"""Which folders of tests run on the main stack alone."""

MAIN_STACK_ONLY = (
    "architecture",
    "unit/config",
    "unit/data",
    "unit/launching",
    "unit/metrics",
)
"""They reach neither transformers nor anything else in which the stacks differ, so that Gaudi's would say the same.

`tests/architecture/test_one_stack.py` looks at every file in them: a test that does reach one goes to another folder.
"""
