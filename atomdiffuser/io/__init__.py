"""Raw files, sessions, stores and tables: everything that opens or writes files."""
