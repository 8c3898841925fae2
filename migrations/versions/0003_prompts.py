"""What a request shares with others is kept beside its plan: digests and token counts of its prefixes, no content.

All three are null in rows from before. The packed form of a prompt (13 bytes and 12 per boundary) is described in
gateway/adapters/postgres/prompts.py.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

UP = """
ALTER TABLE exchanges
    ADD COLUMN prompt bytea,
    ADD COLUMN tenant text,
    ADD COLUMN turn   bigint;
"""

DOWN = """
ALTER TABLE exchanges
    DROP COLUMN turn,
    DROP COLUMN tenant,
    DROP COLUMN prompt;
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(UP)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(DOWN)
