"""`llrun doctor`: what may keep a device from running its part, and what slows it. Looked at by `look` and `peers`,
judged by `judge` and `judge_links`, which are pure."""
