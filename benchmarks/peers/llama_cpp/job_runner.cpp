// Runs jobs of token-id prompts through llama.cpp, greedily; llama_cpp.py starts it.
//
//   job_runner MODEL.gguf THREADS WAVE KV_TOKENS      KV_TOKENS 0: as many as the job's largest wave takes
//
// Standard input has jobs: "job" and the number of requests, then of each "group max_tokens num_tokens token...",
// answered by "ready". Then "run", answered by "computed" and a number of tokens, then "output token..." of each
// request.
//
// llama.cpp shares KV cells between sequences that its caller declares to have tokens in common, so this is where
// prefixes are found: what all prompts begin with is computed once a job, what a group begins with once a wave. A wave
// is groups of together at most WAVE requests, which run until the last of them has ended. Where nothing is shared
// every sequence has cells of its own, because in shared cells attention visits those of all sequences.

#include <algorithm>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

namespace {

constexpr int kBatchTokens = 2048;  // of one llama_decode
constexpr int kMicroBatchTokens = 512;
constexpr int kCellRounding = 256;  // llama.cpp rounds a context up to it

struct Request {
    int max_tokens;
    std::vector<llama_token> prompt, output;
};

// Requests with a common prefix. Every request keeps its last prompt token to itself: its logits are needed.
struct Group {
    std::vector<Request*> members;
    int prefix_tokens;
};

using Wave = std::vector<Group>;

int common_tokens(const std::vector<Request*>& requests) {
    const auto& first = requests.front()->prompt;
    size_t common = first.size();
    for (const Request* request : requests) {
        const auto& prompt = request->prompt;
        common = std::min(common, prompt.size() - 1);
        common = std::mismatch(first.begin(), first.begin() + common, prompt.begin()).first - first.begin();
    }
    return static_cast<int>(common);
}

struct Job {
    std::vector<Request> requests;
    std::vector<Wave> waves;
    int system_tokens = 0;  // what all prompts begin with
    int most_cells = 0;     // KV tokens of the largest wave, system_tokens included
    int longest = 0;        // KV tokens of the longest request
    bool is_shared = false;
};

int cells(const Group& group, int system_tokens) {
    int cells = group.prefix_tokens - system_tokens;
    for (const Request* request : group.members)
        cells += static_cast<int>(request->prompt.size()) - group.prefix_tokens + request->max_tokens;
    return cells;
}

Job read_job(std::istream& in, int max_wave, int kv_tokens) {
    Job job;
    size_t num_requests;
    in >> num_requests;
    job.requests.resize(num_requests);
    std::map<int, std::vector<Request*>> members;
    std::vector<Request*> everyone;
    for (Request& request : job.requests) {
        int group;
        size_t num_tokens;
        in >> group >> request.max_tokens >> num_tokens;
        request.prompt.resize(num_tokens);
        for (llama_token& token : request.prompt) in >> token;
        members[group].push_back(&request);
        everyone.push_back(&request);
        job.longest = std::max(job.longest, static_cast<int>(num_tokens) + request.max_tokens);
    }
    if (!in || everyone.empty()) throw std::runtime_error("standard input: a job ends early");
    job.system_tokens = common_tokens(everyone);
    job.is_shared = job.system_tokens > 0 || members.size() < num_requests;

    int wave_requests = 0, wave_cells = 0;
    for (auto& [_, all] : members) {
        for (size_t begin = 0; begin < all.size(); begin += max_wave) {
            Group group{{all.begin() + begin, all.begin() + std::min(begin + max_wave, all.size())},
                        common_tokens(all)};
            const int group_requests = static_cast<int>(group.members.size());
            const int group_cells = cells(group, job.system_tokens);
            const bool is_full = wave_requests + group_requests > max_wave ||
                                 (kv_tokens && job.system_tokens + wave_cells + group_cells > kv_tokens);
            if (job.waves.empty() || is_full) {
                job.waves.emplace_back();
                wave_requests = wave_cells = 0;
            }
            job.waves.back().push_back(std::move(group));
            wave_requests += group_requests;
            wave_cells += group_cells;
            job.most_cells = std::max(job.most_cells, job.system_tokens + wave_cells);
        }
    }
    return job;
}

int round_up(int num_cells) {
    return (num_cells + kCellRounding - 1) / kCellRounding * kCellRounding;
}

class Runner {
 public:
    Runner(llama_model* model, const Job& job, int num_threads, int max_wave, int kv_tokens)
        : num_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))), system_sequence_(max_wave) {
        if (kv_tokens && job.most_cells > kv_tokens)
            throw std::runtime_error("a wave takes " + std::to_string(job.most_cells) + " KV tokens, the pool has " +
                                     std::to_string(kv_tokens));
        auto params = llama_context_default_params();
        params.kv_unified = job.is_shared;
        params.n_seq_max = params.n_outputs_max = max_wave + 1;
        params.n_ctx = !job.is_shared ? params.n_seq_max * round_up(job.longest)
                                      : round_up(kv_tokens ? kv_tokens : job.most_cells);
        params.n_batch = kBatchTokens;
        params.n_ubatch = kMicroBatchTokens;
        params.n_threads = params.n_threads_batch = num_threads;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.no_perf = true;
        context_ = llama_init_from_model(model, params);
        if (!context_) throw std::runtime_error("llama.cpp made no context");
        batch_ = llama_batch_init(kBatchTokens, 0, max_wave + 1);
    }

    ~Runner() {
        llama_batch_free(batch_);
        llama_free(context_);
    }

    Runner(const Runner&) = delete;
    Runner& operator=(const Runner&) = delete;

    // Fills every request's output; the number of tokens computed for it.
    long run(Job& job) {
        num_computed_ = 0;
        llama_memory_clear(memory(), false);
        for (int position = 0; position < job.system_tokens; ++position)
            add(job.requests[0].prompt[position], position, {system_sequence_});
        compute();
        for (Wave& wave : job.waves) run_wave(wave, job.system_tokens);
        return num_computed_;
    }

 private:
    llama_memory_t memory() { return llama_get_memory(context_); }

    void run_wave(Wave& wave, int system_tokens) {
        std::vector<Request*> running;  // request i is sequence i
        for (Group& group : wave) {
            std::vector<llama_seq_id> sequences;
            for (Request* request : group.members) {
                const auto sequence = static_cast<llama_seq_id>(running.size());
                if (system_tokens) llama_memory_seq_cp(memory(), system_sequence_, sequence, -1, -1);
                sequences.push_back(sequence);
                running.push_back(request);
            }
            for (int position = system_tokens; position < group.prefix_tokens; ++position)
                add(group.members[0]->prompt[position], position, sequences);
        }
        compute();

        llama_seq_id sequence = 0;
        for (Group& group : wave) {
            for (Request* request : group.members) {
                const int num_tokens = static_cast<int>(request->prompt.size());
                for (int position = group.prefix_tokens; position < num_tokens; ++position)
                    add(request->prompt[position], position, {sequence},
                        position + 1 == num_tokens ? request : nullptr);
                ++sequence;
            }
        }
        while (batch_.n_tokens) {
            compute();
            for (size_t i = 0; i < running.size(); ++i) {
                Request* request = running[i];
                const size_t num_outputs = request->output.size();
                if (static_cast<int>(num_outputs) == request->max_tokens) continue;
                const auto position = static_cast<llama_pos>(request->prompt.size() + num_outputs - 1);
                add(request->output.back(), position, {static_cast<llama_seq_id>(i)}, request);
            }
        }
        for (size_t i = 0; i < running.size(); ++i) llama_memory_seq_rm(memory(), static_cast<llama_seq_id>(i), -1, -1);
    }

    // Adds a token to the batch; `reader` is to get the token that follows it.
    void add(llama_token token, llama_pos position, const std::vector<llama_seq_id>& sequences,
             Request* reader = nullptr) {
        if (batch_.n_tokens == kBatchTokens) compute();
        const int i = batch_.n_tokens++;
        batch_.token[i] = token;
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = static_cast<int32_t>(sequences.size());
        std::copy(sequences.begin(), sequences.end(), batch_.seq_id[i]);
        batch_.logits[i] = reader != nullptr;
        if (reader) readers_.emplace_back(i, reader);
    }

    void compute() {
        if (!batch_.n_tokens) return;
        if (const int status = llama_decode(context_, batch_))
            throw std::runtime_error("llama_decode: status " + std::to_string(status));
        num_computed_ += batch_.n_tokens;
        for (auto [i, reader] : readers_) {
            const float* logits = llama_get_logits_ith(context_, i);
            reader->output.push_back(static_cast<llama_token>(std::max_element(logits, logits + num_vocab_) - logits));
        }
        readers_.clear();
        batch_.n_tokens = 0;
    }

    llama_context* context_ = nullptr;
    llama_batch batch_{};
    std::vector<std::pair<int, Request*>> readers_;  // row of the batch, who gets its token
    int num_vocab_;
    llama_seq_id system_sequence_;
    long num_computed_ = 0;
};

void serve(llama_model* model, int num_threads, int max_wave, int kv_tokens) {
    for (std::string word; std::cin >> word;) {
        if (word != "job") throw std::runtime_error("standard input: expected a job, got " + word);
        Job job = read_job(std::cin, max_wave, kv_tokens);
        Runner runner(model, job, num_threads, max_wave, kv_tokens);
        std::cout << "ready" << std::endl;
        if (!(std::cin >> word) || word != "run") return;
        std::cout << "computed " << runner.run(job) << '\n';
        for (const Request& request : job.requests) {
            std::cout << "output";
            for (llama_token token : request.output) std::cout << ' ' << token;
            std::cout << '\n';
        }
        std::cout.flush();
    }
}

}  // namespace

int main(int num_args, char** args) {
    if (num_args != 5) {
        std::cerr << "job_runner MODEL.gguf THREADS WAVE KV_TOKENS\n";
        return 2;
    }
    try {
        llama_log_set(
            [](ggml_log_level level, const char* text, void*) {
                if (level >= GGML_LOG_LEVEL_WARN) std::cerr << text;
            },
            nullptr);
        llama_backend_init();
        llama_model* model = llama_model_load_from_file(args[1], llama_model_default_params());
        if (!model) throw std::runtime_error(std::string(args[1]) + ": llama.cpp could not load it");
        serve(model, std::stoi(args[2]), std::stoi(args[3]), std::stoi(args[4]));
        llama_model_free(model);
    } catch (const std::exception& error) {
        std::cerr << "job_runner: " << error.what() << '\n';
        return 1;
    }
}
