"""Rules about budgets, pure; services act."""
