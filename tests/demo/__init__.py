# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: a throwaway Debian 13 guest, provisioned by playbooks/site.yml, left running."""
