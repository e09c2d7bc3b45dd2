"""``python -m modelless`` is the ``modelless`` command."""

from modelless.commands import main

if __name__ == "__main__":
    main()
