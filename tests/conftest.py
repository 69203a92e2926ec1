"""Loads the fixtures, but not where this process only deals out tests to others: their imports take ten seconds."""


def pytest_configure(config):
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("small")
