"""What-if in virtual time: the core that routes live traffic, driven over recorded traffic and a providers' world."""
