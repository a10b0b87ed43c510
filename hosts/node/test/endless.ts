// A client that streams until it is killed.

import { Pool } from "../src/index.js";

const [endpoint, name] = process.argv.slice(2);
const pool = await Pool.connect(endpoint);
const llm = await pool.llm(undefined, { name: name as string });
for await (const delta of llm.stream("abc", { max_tokens: 1_000_000, ignore_eos: true })) {
  process.stdout.write(delta.text);
}
