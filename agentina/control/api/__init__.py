"""HTTP routes: parse, one service call, render."""
