"""``python -m vistok``, and so ``accelerate launch -m vistok``."""

from vistok.cli.main import main

if __name__ == "__main__":
    main()
