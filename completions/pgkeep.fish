# Completion of pgkeep for fish, which asks pgkeep itself what may come next.

function __pgkeep_answer
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l current (commandline --current-token --cut-at-cursor)
    set -l program (string replace --regex -- '^~/' "$HOME/" $words[1])
    for answer in (PGKEEP_COMPLETE=fish $program -- $words "$current" 2>/dev/null)
        switch $answer
            case \tfiles
                __pgkeep_files "$current"
            case \tfolders
                __pgkeep_files "$current" | string match --regex '.*/$'
            case '*'
                echo $answer
        end
    end
end

# The files that a word may become, be it one by itself or the value of an option.
function __pgkeep_files
    set -l option (string match --regex -- '^--[^=]*=' $argv)
    set -l path (string replace --regex -- '^--[^=]*=' '' $argv)
    # A command that does not exist has only files for arguments.
    string replace --regex -- '^' "$option" (complete --do-complete "'' $path")
end

complete --command pgkeep --no-files --keep-order --arguments '(__pgkeep_answer)'
