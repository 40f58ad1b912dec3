"""Load the pytest plugin that judges stacks."""

pytest_plugins = ["properties.plugin"]
