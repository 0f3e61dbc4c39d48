"""The `atomdiffuser` command, also as `python -m atomdiffuser`."""

import sys


def run() -> None:
    """Run the command line; Ctrl-C while it starts, or as it leaves, is no error to trace."""
    try:
        from atomdiffuser.workflow.warm_job import hand_over

        hand_over(sys.argv[1:])
        from atomdiffuser.interrupts import leave_interrupts, take_interrupts

        take_interrupts()
        from atomdiffuser.cli import main

        try:
            main(prog_name="atomdiffuser")
        finally:
            leave_interrupts()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
