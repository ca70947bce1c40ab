"""Random lives of a repository, against a memory of what each snapshot must restore to.

python -m tests.model --seconds 600          lives of 60 steps, until the time is over or one goes wrong
python -m tests.model --seed 7 --lives 1     one of them again
"""
