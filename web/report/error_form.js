// The text of an error as the form of a report: a headline, indented facts, and `Fix: ...`.

const FACT = /^ {2}([^:]+): (.*)$/;
const FIX = /^Fix: (.*)$/;

export function errorForm(text) {
  const [headline, ...rest] = text.trim().split("\n");
  const form = { headline, level: "wrong", facts: [], sections: [], notes: [], fix: "" };
  for (const line of rest) {
    const [fact, fix] = [FACT.exec(line), FIX.exec(line)];
    if (fix) form.fix = fix[1];
    else if (form.fix) form.fix += ` ${line.trim()}`;
    else form.facts.push(fact ? fact.slice(1) : ["", line.trim()]);
  }
  return form;
}
