// Calls what runs, then tries to load a model: prints the answer, and the codes of what is refused.
import { Pool, PermissionDenied } from "vllmport";

try {
  const pool = await Pool.connect();
  const llm = await pool.llm(undefined, { name: "tiny" });
  const answer = await llm.generate("The capital of France is", { temperature: 0, max_tokens: 8 });
  console.log(answer.outputs[0].text);
  await pool.llm("echo", { name: "mine" }).then(
    () => console.log("loaded"),
    (error) => console.log(error.code, error.details.role, error instanceof PermissionDenied),
  );
  await pool.close();
} catch (error) {
  console.log(error.code, error.details.endpoint, error instanceof PermissionDenied);
}
