"""From records alone: tables, tests, figures, the page."""
