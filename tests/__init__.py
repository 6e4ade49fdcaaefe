"""Makes `python -m tests.gpu` these tests: torch-fidelity installs a package of the same name."""
