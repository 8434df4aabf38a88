"""Tables, tests, figures and the page, from records alone."""
