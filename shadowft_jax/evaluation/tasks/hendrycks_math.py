r"""MATH: 5000 competition problems; zero-shot, and with Minerva's four worked examples.

{"problem": "How many vertical asymptotes does the graph of $y=\\frac{2}{x^2+x-6}$ have?",
 "level": "Level 3", "type": "Algebra", "solution": "... Therefore, the graph has $\\boxed{2}$ ...",
 "idx": 0}

Rule: the boxed answer, or else the one after "answer is".
Prompts: OpenCompass math_0shot_gen_393424 and math_evaluatorv2_gen_cecb31 (Lewkowycz et al. 2022,
arXiv 2206.14858, appendix D.2), on the same 5000 problems as the authors ran them.  OpenCompass
writes the braces of the worked examples twice and never halves them, so the authors' prompt has
\frac{{a}}{{b}}, and so has this one.
"""

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, dialogue, example

PROBLEMS = Original(
  files=("math/math_test5000.jsonl", "math/test.jsonl"),
  form='rows with "problem", "solution" and "type"',
  origin="https://github.com/ZubinGou/math-evaluation-harness (data/math/test.jsonl)",
)
SHOTS = [
  (
    r"Find the domain of the expression $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.}",
    r"The expressions inside each square root must be non-negative. Therefore, $x-2 \ge 0$, so "
    r"$x\ge2$, and $5 - x \ge 0$, so $x \le 5$. Also, the denominator cannot be equal to zero, so "
    r"$5-x>0$, which gives $x<5$. Therefore, the domain of the expression is $\boxed{[2,5)}$.",
    "[2,5)",
  ),
  (
    r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find $\det (\mathbf{A} "
    r"\mathbf{B}).$",
    r"We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})(\det \mathbf{B}) = (2)(12) = "
    r"\boxed{24}.$",
    "24",
  ),
  (
    "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights instead, "
    "how many times must Terrell lift them in order to lift the same total weight?",
    r"If Terrell lifts two 20-pound weights 12 times, he lifts a total of $2\cdot 12\cdot20=480$ "
    r"pounds of weight. If he lifts two 15-pound weights instead for $n$ times, he will lift a "
    r"total of $2\cdot15\cdot n=30n$ pounds of weight. Equating this to 480 pounds, we can solve "
    r"for $n$: \begin{align*} 30n&=480\\ \Rightarrow\qquad n&=480/30=\boxed{16} \end{align*}",
    "16",
  ),
  (
    r"If the system of equations: \begin{align*} 6x-4y&=a,\\ 6y-9x &=b. \end{align*}has a solution "
    r"$(x, y)$ where $x$ and $y$ are both nonzero, find $\frac{a}{b},$ assuming $b$ is nonzero.",
    r"If we multiply the first equation by $-\frac{3}{2}$, we obtain $$6y-9x=-\frac{3}{2}a.$$Since "
    r"we also know that $6y-9x=b$, we have $$-\frac{3}{2}a=b\Rightarrow\frac{a}{b}="
    r"\boxed{-\frac{2}{3}}.$$",
    r"-\frac{2}{3}",
  ),
]
ENDING = "\nFinal Answer: The final answer is ${answer}$. I hope it is correct.\n"


def _worked():
  for problem, solution, answer in SHOTS:
    turns = f"Problem:\n{problem}\nSolution:", solution + ENDING.replace("{answer}", answer)
    yield tuple(turn.replace("{", "{{").replace("}", "}}") for turn in turns)


def _problems(data):
  """(problem, answer, subject) of every row."""
  for row in data.rows(PROBLEMS):
    if (answer := grading.boxed(row["solution"])) is None:
      raise InputError(
        f"MATH has a solution without \\boxed: {row['solution'][-80:]!r}; download the file again"
      )
    yield row["problem"], answer, row.get("type", "")


def _zero_shot(data: Data) -> list[Example]:
  return [example(grading.BOXED.format(problem=p), gold, kind) for p, gold, kind in _problems(data)]


def _four_shot(data: Data) -> list[Example]:
  worked = list(_worked())
  prompt = lambda problem: f"Problem:\n{problem}\nSolution:\n"
  return [example(dialogue(worked, prompt(p)), gold, kind) for p, gold, kind in _problems(data)]


MATH = Task("math", _zero_shot, grading.mathematics, max_new_tokens=1024)
MINERVA = Task("minerva_math", _four_shot, grading.mathematics, max_new_tokens=1024)
