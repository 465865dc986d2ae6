"""The site as a reader meets it: built, served, opened in a browser."""
