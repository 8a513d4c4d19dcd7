"""Plans, and what a rank does under one: placements, collectives, stages."""
