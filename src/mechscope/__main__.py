"""`python -m mechscope`: the command line, where no script is on the path."""

from mechscope.cli.main import run

if __name__ == "__main__":
    run()
