"""Pages, their .json twins, health, and the receiver of Slack's clicks. Shows and passes on; decides nothing itself."""
