"""How a service's migrations are run; `Database.upgrade` names this folder to Alembic."""
