"""The database: transactions, queries, migrations. The only place with SQL."""
