"""Takes a training step on each batch of validation rows before it answers the next.

Ends as invalid: a row that is asked again is answered differently
"""

import honest
import torch


class Student(honest.Bigram):
    def forward(self, x):
        answer = self.table[x]
        if not torch.is_grad_enabled():
            with torch.inference_mode(False), torch.enable_grad():
                rows = x.clone()
                for _ in range(5):
                    honest.learn(table, rows[:, :-1], rows[:, 1:])
        return answer.clone()


student, table = Student(), honest.Bigram()
honest.train(student, honest.batches())
table.table = student.table
honest.evaluate(student)
