"""Which tests share a process when several run side by side, as in `make test`."""

import pytest

USUAL_PORTS = {"test_guides.py", "test_demo.py"}
"""Files whose tests start servers on the ports that a server takes when it is told none."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file in one process, for the models that its tests share, and those on the usual ports in one."""
    for item in items:
        group = "usual-ports" if item.path.name in USUAL_PORTS else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
