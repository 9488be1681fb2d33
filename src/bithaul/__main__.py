"""`python -m bithaul` is the same as `bithaul`."""

from bithaul.cli.main import run

if __name__ == "__main__":
    run()
