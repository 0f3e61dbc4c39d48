"""`python -m atomdiffuser`: the same as the `atomdiffuser` command."""

import sys

try:
    from atomdiffuser.cli import main
except KeyboardInterrupt:  # Ctrl-C while a job starts is no error to trace
    sys.exit(130)

if __name__ == "__main__":
    main(prog_name="atomdiffuser")
