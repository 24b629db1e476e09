"""`python -m irpo_nemo` is the `irpo` command."""

from irpo_nemo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
