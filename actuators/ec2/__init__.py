"""EC2: an instance's type, and an Auto Scaling group's count or bounds."""
