defmodule VLLM.GuideTest do
  @moduledoc """
  The snippets of the configuration guide, executed as they are written. The names in them stand for
  the bundled model; what needs hardware that is not here gives its typed error.
  """
  use VLLM.Case, async: false

  @folder Path.expand("guide", __DIR__)

  # Snippet → how it fails where there are not several GPUs, or no quantized model.
  @needs_more %{
    "03_parallelism_configuration" => [:startup_failed, :invalid_request],
    "04_quantization_configuration" => [:startup_failed, :invalid_request],
    "17_for_memory_constrained_systems" => [:startup_failed, :invalid_request]
  }

  @params VLLM.sampling_params!(temperature: 0, max_tokens: 8)

  # Each snippet that is executed says so; after all tests, none may be missing.
  setup_all do
    {:ok, executed} = Agent.start(fn -> MapSet.new() end, name: __MODULE__.Executed)

    on_exit(fn ->
      missing = MapSet.difference(MapSet.new(snippets()), Agent.get(executed, & &1))
      Agent.stop(executed)
      chosen? = ExUnit.configuration()[:include] != []
      unless chosen?, do: assert(MapSet.to_list(missing) == [], "they were not executed")
    end)
  end

  setup do
    with_env(:snakepit, [])
    with_env(:snakebridge, [])
    with_env(:vllm, [])
    :ok
  end

  defp snippets, do: @folder |> File.ls!() |> Enum.map(&Path.basename(&1, ".exs"))

  defp source(name), do: File.read!(Path.join(@folder, name <> ".exs"))

  defp executed(name), do: Agent.update(__MODULE__.Executed, &MapSet.put(&1, name))

  # What a snippet says under config/.
  defp configure(name) do
    source = source(name)
    source = if source =~ "import Config", do: source, else: "import Config\n" <> source
    config = Config.Reader.eval!(Path.join(@folder, "config.exs"), source, env: :test)
    Application.put_all_env(Keyword.delete(config, :logger))
    executed(name)
    config
  end

  # It counts as executed also where it raises: the test of it says what it may raise.
  defp evaluate(name, binding \\ []) do
    executed(name)
    name |> source() |> Code.eval_string(binding) |> elem(1)
  end

  # Execute a snippet and ask its model something.
  defp attempt(name) do
    llm = evaluate(name)[:llm]
    opts = [sampling_params: @params]
    [%{outputs: [%{text: text}]}] = VLLM.generate!(llm, "The capital of France is", opts)
    VLLM.release(llm)
    if text == " Paris.", do: :answered, else: {:said, text}
  rescue
    error in Error -> {:error, error}
  end

  snippets = @folder |> File.ls!() |> Enum.sort() |> Enum.map(&Path.basename(&1, ".exs"))
  loading = Enum.filter(snippets, &(File.read!(Path.join(@folder, &1 <> ".exs")) =~ "VLLM.llm!("))

  test "every snippet is executed here" do
    assert length(unquote(snippets)) == 17
    assert length(unquote(loading)) == 12
  end

  # Two at a time: an engine that starts keeps one processor busy.
  @tag :capture_log
  @tag timeout: 900_000
  test "the snippets that load a model get one that answers, or fail with a typed error" do
    outcomes =
      unquote(loading)
      |> Task.async_stream(&{&1, attempt(&1)}, max_concurrency: 2, timeout: :infinity)
      |> Enum.map(fn {:ok, {name, outcome}} -> {name, outcome} end)

    for {name, outcome} <- outcomes do
      case {@needs_more[name], outcome} do
        {nil, :answered} ->
          :ok

        {codes, {:error, error}} when codes != nil ->
          assert error.code in codes and error.phase == "load", "#{name}: #{inspect(error)}"

        {_, other} ->
          flunk("#{name} went otherwise: #{inspect(other)}")
      end
    end
  end

  test "the configuration of the bridge is taken" do
    venv = Path.join(System.tmp_dir!(), "venv-guide-#{System.pid()}")
    File.mkdir_p!(Path.join(venv, "bin"))
    File.touch!(Path.join(venv, "bin/python3"))
    System.put_env("SNAKEBRIDGE_VENV", venv)
    on_exit(fn -> System.delete_env("SNAKEBRIDGE_VENV") && File.rm_rf!(venv) end)
    config = configure("05_snakebridge_configuration")
    assert config[:snakepit][:environment] == :test
    assert VLLM.Config.client_name() == "elixir test"
    assert VLLM.Config.python() == Path.join(venv, "bin/python3")
    assert VLLM.Config.timeout([], :default) == 600_000
    refute VLLM.Config.verbose?()

    configure("06_compile_time_bindings_snakebridge")
    assert VLLM.Config.v1_multiprocessing() == :auto
    assert VLLM.Config.python() == Path.join(venv, "bin/python3")
  end

  test "the multiprocessing of engines is configured" do
    configure("07_vllm_v1_multiprocessing_vllm_0_14")
    assert VLLM.Config.v1_multiprocessing() == :auto
  end

  test "a timeout for all calls is configured" do
    configure("08_global_timeouts")
    assert VLLM.Config.timeout([], :default) == 3_600_000
  end

  test "timeouts of single calls are given in each of the three ways" do
    llm = VLLM.llm!("echo", name: "in time")
    binding = [llm: llm, prompts: ["in time"], params: @params]
    bound = evaluate("09_per_call_timeouts", binding)
    assert [%{outputs: [%{text: "in time"}]}] = bound[:outputs]
    assert bound[:opts][:__runtime__] == [timeout_profile: :ml_inference]
    VLLM.release(llm)
  end
end
