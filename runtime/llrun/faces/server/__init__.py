"""`llrun serve`: an HTTP server that speaks OpenAI's API, on the head. Nothing else imports it."""
