"""`python -m atomdiffuser`: the same as the `atomdiffuser` command."""

from atomdiffuser.cli import main

if __name__ == "__main__":
    main(prog_name="atomdiffuser")
