"""How a researcher is asked: which program the next proposal starts from, which questions are open, and what becomes of
the answers. What happens to a proposal once it is a trial does not belong here."""
